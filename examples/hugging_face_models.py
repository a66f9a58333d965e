"""An ensemble of models from Hugging Face or a local path. Usage: hugging_face_models.py MODEL MODEL ... -- QUESTION

Example: hugging_face_models.py meta-llama/Llama-3.1-8B-Instruct mistralai/Mistral-7B-Instruct-v0.3 -- "Who wrote Emma?"
"""

import sys

from adafuse_core import Ensemble, TextDelta

if "--" not in sys.argv:
    sys.exit(__doc__)
split = sys.argv.index("--")
models, question = sys.argv[1:split], " ".join(sys.argv[split + 1 :])

ensemble = Ensemble.from_pretrained(*models)
for event in ensemble.stream([{"role": "user", "content": question}], max_new_tokens=200):
    if isinstance(event, TextDelta):
        print(event.text, end="", flush=True)
print()
