"""A process that encodes text on one core: ``python -P -m mixerzoo.data.encoding_worker``.

It takes a tokenizer from standard input and then batches of texts, and gives their ids to standard output. When its
input ends, as it does with the process that started it, it ends.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from tokenizers import Tokenizer

from mixerzoo.data.encoding import Ids, to_ids
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.errors import DataError


def main() -> None:
    """Answers each batch with its ids, or with the words of the error that it makes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    asked = Connection(sys.stdin.fileno(), writable=False)
    answers = Connection(sys.stdout.fileno(), readable=False)
    try:
        tokenizer_json, end_of_text, dtype = asked.recv()
        tokenizer = TextTokenizer(Tokenizer.from_str(tokenizer_json), end_of_text)
        while True:
            texts = asked.recv()
            answer: tuple[Ids | None, str | None]
            try:
                answer = (to_ids(tokenizer, texts, dtype), None)
            except DataError as error:
                answer = (None, str(error))
            answers.send(answer)
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
