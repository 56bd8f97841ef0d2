"""A predictor of as many processes as it sees GPUs, started in every way that launchers have."""

import multiprocessing
import os
import subprocess
import sys
from typing import Any

import rank
from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        how = os.environ.get("RANKS_BY", "session")
        self.world = len(os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2").split(","))
        if how in ("spawn", "fork"):
            context = multiprocessing.get_context(how)
            for number in range(self.world):
                context.Process(target=rank.main, args=(number, self.world), daemon=how == "fork").start()  # type: ignore[attr-defined]
        else:
            hang = os.environ.get("RANKS_HANG", "")
            for number in range(self.world):
                words = [sys.executable, rank.__file__, str(number), str(self.world), how, hang]
                # torchrun starts each in a session of its own.
                subprocess.Popen(words, start_new_session=how != "group")
        self.file = rank.connected("client")
        self.pids = [int(pid) for pid in self.file.readline().split()]

    def predict(self, value: int = 1, seconds: float = 0.0) -> Any:
        rank.say(self.file, f"{value} {seconds}")
        answer = self.file.readline()
        if not answer:
            raise RuntimeError("a rank has died")
        return {
            "sum": int(answer),
            "pid": os.getpid(),
            "ranks": self.pids,
            "port": os.environ["MASTER_PORT"],
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
