"""The answers of each member alone and of the ensemble to one question. Usage: compare_members.py [QUESTION]"""

import sys

from adafuse_core import Ensemble

question = sys.argv[1] if len(sys.argv) > 1 else "What is the capital of Peru and what is the currency of Japan?"
messages = [{"role": "user", "content": question}]

ensemble = Ensemble.from_pretrained()
for name in ensemble.names:
    alone = Ensemble(ensemble.config, strategy="single", member=name)  # shares the loaded model
    print(f"{name:>8}: {alone.generate(messages).text}")
print(f"together: {ensemble.generate(messages).text}")
