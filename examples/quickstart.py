"""The core without a framework: a complete answer, a stream, and the trace of each round."""

from adafuse_core import Ensemble, TextDelta

# The two small models of the package. For other models, give their names:
# Ensemble.from_pretrained("meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3")
ensemble = Ensemble.from_pretrained()

question = [{"role": "user", "content": "What is the capital of Peru?"}]
answer = ensemble.generate(question)
print(answer.text, f"({answer.reason}, {answer.usage.rounds} rounds)")

for event in ensemble.stream([{"role": "user", "content": "Hello!"}]):
    if isinstance(event, TextDelta):
        print(event.text, end="", flush=True)
print()

for played in answer.rounds:
    print(
        f"{played.span.text!r} proposed by {' and '.join(played.winner.proposers)}, {len(played.candidates)} candidates"
    )
