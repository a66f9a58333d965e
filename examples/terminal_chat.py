"""A chat in the terminal with streamed answers. An empty line ends the chat."""

from adafuse_core import Ensemble, TextDelta

ensemble = Ensemble.from_pretrained()
messages = []
while question := input("you> ").strip():
    messages.append({"role": "user", "content": question})
    answer = ""
    for event in ensemble.stream(messages):
        if isinstance(event, TextDelta):
            answer += event.text
            print(event.text, end="", flush=True)
    print()
    messages.append({"role": "assistant", "content": answer})
