"""What ChatAdaFuse and LangChain's own ChatHuggingFace do in the same situations, on the same small model.

    python benchmarks/langchain_peers.py --json PATH

ChatHuggingFace runs over its local pipeline. It is no dependency of this project: in an environment of its own,
`pip install langchain==1.4.7 langchain-huggingface==1.2.3 langchain-tests==1.1.9`. Where it is absent, only our side is
shown; where langchain-tests is absent, the standard suites are left out. Every line is what was seen in this run.
"""

from __future__ import annotations

from common import arguments, finish
from peers import langchain_suites
from peers.comparison import begin, compare, installed, show
from peers.langchain_sides import PACKAGE, Peer, Side
from peers.langchain_situations import SITUATIONS


def main() -> None:
    args = arguments(__doc__ or "").parse_args()
    about = begin(args, ("langchain-core", langchain_suites.PACKAGE, PACKAGE, "huggingface_hub"))
    sides: list[Side] = [Peer(), Side()] if installed(PACKAGE) else [Side()]
    rows = compare(sides, SITUATIONS)
    show(rows, sides)
    tested = installed(langchain_suites.PACKAGE) and not args.quick
    suites = {side.name: langchain_suites.run(side) for side in sides} if tested else {}
    if suites:
        langchain_suites.show(suites)
    finish({**about, "rows": rows, "suites": suites}, args.json)


if __name__ == "__main__":
    main()
