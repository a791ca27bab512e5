"""
A process that runs `trl-sdpo` and Python against the Hub of server.py, for as long as a test has work for it: a line
of JSON in, `{"argv": [...]}` or `{"code": "..."}`, and one out, with the exit status and what was printed.
"""

import contextlib
import io
import json
import logging
import subprocess
import sys
import traceback


class Worker:
    """The parent's side."""

    def __init__(self, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def push(self, *words) -> dict:
        return self.ask(argv=["push", *map(str, words)])

    def stop(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


def answer(request: dict) -> dict:
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)
    logging.getLogger().addHandler(handler)
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "argv" in request:
                from trl_sdpo import cli

                status = cli.main(request["argv"])
            else:
                exec(compile(request["code"], "<test>", "exec"), {})
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = 1
            traceback.print_exc()
    logging.getLogger().removeHandler(handler)
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    answers = sys.stdout
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()
