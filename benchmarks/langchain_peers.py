"""ChatAdaFuse and LangChain's ChatHuggingFace in the same situations, with the same small model.

    python benchmarks/langchain_peers.py --json PATH

ChatHuggingFace runs over its local pipeline. It isn't a dependency of this project: in a separate environment, run
`pip install langchain==1.4.7 langchain-huggingface==1.2.3 langchain-tests==1.1.9`. Without it, only ChatAdaFuse is
shown; without langchain-tests, the standard suites are skipped. All results are observed in this run.
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
