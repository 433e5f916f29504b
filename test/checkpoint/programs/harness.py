"""
What the Python programs of the matrix share: an HTTP server with `GET /report`, which runs the program's checks, and
`POST /ask?id=ID&kind=plain|stream`, which makes a call to the LLM proxy and appends each piece of the answer to
/agent/data/answers/ID as it comes; ID.end is there once it has ended.
"""

import ctypes
import json
import os
import sys
import threading
import traceback
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

ANSWERS = '/agent/data/answers'
LIFE = str(uuid.uuid4())
# An extension module's own loading reads the disk: it shall not be the first thing after a wake.
LIBC = ctypes.CDLL(None, use_errno=True)


def libc(name, *arguments):
    """Calls a function of libc; raises OSError where it gives a negative number."""
    result = getattr(LIBC, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f'{name}: {os.strerror(ctypes.get_errno())}')
    return result


def expect(what, seen, wanted):
    if seen != wanted:
        raise AssertionError(f'{what}: {seen!r}, expected {wanted!r}')


def ask(identifier, kind):
    url = f"{os.environ['ORB_PROXY_URL']}/{kind}"
    request = urllib.request.Request(url, b'{}', {'x-question': identifier, 'content-type': 'application/json'})
    end = ''
    try:
        with urllib.request.urlopen(request) as response, open(f'{ANSWERS}/{identifier}', 'ab', buffering=0) as out:
            while piece := response.read1(65536):
                out.write(piece)
    except Exception as error:
        end = repr(error)
    with open(f'{ANSWERS}/{identifier}.end', 'a') as out:
        out.write(f'{end}\n')


def run(check):
    """Serves for ever. `check` returns numbers by name, each of which is larger at every call, or raises."""
    os.makedirs(ANSWERS, exist_ok=True)
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with turn:
                try:
                    self.answer({'life': LIFE, 'counts': check(), 'problem': None})
                except Exception:
                    self.answer({'life': LIFE, 'counts': {}, 'problem': traceback.format_exc()})

        def do_POST(self):
            query = parse_qs(urlparse(self.path).query)
            threading.Thread(target=ask, args=(query['id'][0], query['kind'][0]), daemon=True).start()
            self.answer({})

        def answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header('content-length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 8000), Handler)
    threading.Thread(target=server.serve_forever).start()
    print('ready', flush=True)


def later(work):
    """Runs `work` in a thread of its own; the program ends should it fail, so that nothing fails unseen."""

    def guarded():
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    threading.Thread(target=guarded, daemon=True).start()
