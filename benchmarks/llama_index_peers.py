"""AdaFuseLLM and LlamaIndex's HuggingFaceLLM in the same situations, with the same small model.

    python benchmarks/llama_index_peers.py --json PATH

HuggingFaceLLM isn't a dependency of this project: run `pip install llama-index-llms-huggingface==0.8.0` in a separate
environment. Without it, only AdaFuseLLM is shown. All results are observed in this run.
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
