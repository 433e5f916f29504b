"""Counts with the help of an LLM through Python's standard library alone: one plain call after another."""

import json
import os
import time
import urllib.request

MODEL = os.environ.get("MODEL") or "claude-haiku-5-5"
# Each call costs money with a real LLM: the agent stops asking after this many and stays as it is.
COUNT_TO = int(os.environ.get("COUNT_TO") or 5)
PAUSE_S = 1
MAX_TOKENS = 60
# Longer than any answer: orb keeps the connection open while the agent sleeps.
TIMEOUT_S = 3600


def ask(conversation):
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
        data=json.dumps({"model": MODEL, "max_tokens": MAX_TOKENS, "messages": conversation}).encode(),
        headers={
            "content-type": "application/json",
            "anthropic-version": "2023-06-01",
            "x-api-key": os.environ["ANTHROPIC_API_KEY"],
        },
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return "".join(block.get("text", "") for block in json.load(answer)["content"])


conversation = []
for count in range(1, COUNT_TO + 1):
    question = f"Which number comes after {count - 1}? Answer in one short sentence."
    conversation.append({"role": "user", "content": question})
    print(f"call {count}: asking", flush=True)
    text = ask(conversation)
    conversation.append({"role": "assistant", "content": text})
    print(f"call {count}: {text} ({len(conversation)} messages remembered)", flush=True)
    time.sleep(PAUSE_S)

print("done", flush=True)
# It stays in memory, so that it can be sent to sleep and woken by hand.
while True:
    time.sleep(3600)
