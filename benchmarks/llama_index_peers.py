"""What AdaFuseLLM and LlamaIndex's own HuggingFaceLLM do in the same situations, on the same small model.

    python benchmarks/llama_index_peers.py --json PATH

HuggingFaceLLM is no dependency of this project: `pip install llama-index-llms-huggingface==0.8.0` in an environment of
its own. Where it is absent, only our side is shown. Every line is what was seen in this run.
"""

from __future__ import annotations

from common import arguments, finish
from peers.comparison import begin, compare, installed, show
from peers.llama_index_sides import PACKAGE, Peer, Side
from peers.llama_index_situations import SITUATIONS


def main() -> None:
    args = arguments(__doc__ or "").parse_args()
    about = begin(args, ("llama-index-core", PACKAGE))
    sides: list[Side] = [Peer(), Side()] if installed(PACKAGE) else [Side()]
    rows = compare(sides, SITUATIONS)
    show(rows, sides)
    finish({**about, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
