"""One of several processes that predict together, as torchrun's do: rank 0 listens at MASTER_PORT, others connect."""

import os
import signal
import socket
import sys
import time
from typing import Any


def connected(who: str) -> Any:
    """A file to rank 0, which may still be starting."""
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    until = time.monotonic() + 20
    while True:
        try:
            file = socket.create_connection(address).makefile("rw")
            break
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
    file.write(who + "\n")
    file.flush()
    return file


def say(file: Any, line: str) -> None:
    file.write(line + "\n")
    file.flush()


def lead(world: int, hangs: bool) -> None:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
    server.listen()
    files = {}
    for _ in range(world):  # the other ranks, and whoever asks
        file = server.accept()[0].makefile("rw")
        files[file.readline().strip()] = file
    client = files.pop("client")
    say(client, " ".join([str(os.getpid()), *(file.readline().strip() for file in files.values())]))
    for line in client:
        total = 0
        try:
            for file in files.values():
                say(file, line.strip())
            for file in files.values():
                answer = file.readline()
                if not answer:
                    raise OSError("a rank is gone")
                total += int(answer)
        except OSError:
            if hangs:
                signal.pause()  # as a collective does that waits for a peer
            return
        say(client, str(total))


def follow(rank: int) -> None:
    file = connected(f"rank {rank}")
    say(file, str(os.getpid()))
    for line in file:
        value, seconds = line.split()
        time.sleep(float(seconds))
        say(file, str(rank * int(value)))


def main(rank: int, world: int, hangs: bool = False) -> None:
    if rank == 0:
        lead(world, hangs)
    else:
        follow(rank)


if __name__ == "__main__":
    rank, world, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if how == "daemon":
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
    main(rank, world, hangs="hang" in sys.argv)
