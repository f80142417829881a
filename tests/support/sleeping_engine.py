"""The process of an engine that sleeps, without a model: ``SupervisedEngine`` starts it in place of the real one.

It answers each request at once, or after a moment where the prompt says ``slow``, and it ends with exit code 99 when it
is told anything but to wake while it sleeps: its weights are not where they were. One that ``CANT_WAKE`` says so.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from graft_server.engine import messages
from graft_server.engine.base import Capabilities, Delta, EngineStats, ModelInfo

SLOW = 0.3
#: The first engine of the file that this environment variable names can't wake.
CANT_WAKE = "GRAFT_TEST_CANT_WAKE"


def serve(connection: socket.socket) -> None:
    def send(message: object) -> None:
        connection.sendall(messages.frame(message))

    asleep = False
    unloaded: list[str] = []
    with connection.makefile("rb") as stream:
        while header := stream.read(messages.HEADER.size):
            message = messages.to_engine_decoder.decode(stream.read(messages.HEADER.unpack(header)[0]))
            if asleep and not isinstance(message, messages.Wake):
                os._exit(99)
            match message:
                case messages.Start(config):
                    able = Capabilities("vllm", ("lora",), 8, 4, (), "cuda", "bfloat16", sleeps=config.sleeps)
                    send(messages.Ready(ModelInfo("tiny", "f" * 64, "/tiny", "Tiny", 100, 1), able))
                case messages.Generate(request):
                    delta = Delta(text="hello", finish_reason="stop")
                    slow = SLOW if "slow" in (request.prompt.text or "") else 0
                    threading.Timer(slow, send, [messages.Deltas([(request.id, delta)])]).start()
                case messages.Unload(engine_id):
                    unloaded.append(str(engine_id))
                case messages.Wake(call_id) if (file := os.environ.get(CANT_WAKE)) and os.path.exists(file):
                    os.remove(file)
                    send(messages.Failed(call_id, "engine-error", "CUDA out of memory"))
                case messages.Sleep(call_id) | messages.Wake(call_id):
                    asleep = isinstance(message, messages.Sleep)
                    send(messages.Done(call_id))
                case messages.AskStats(call_id):
                    send(messages.Stats(call_id, EngineStats(loaded=tuple(unloaded))))
                case _:
                    pass


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
