"""A connection on which a client has spoken and that its server has not accepted yet: over `tcp` or `unix`, as argument."""

import socket
import sys

from harness import expect, run

checks = 0
if sys.argv[1] == 'unix':
    family, address = socket.AF_UNIX, '/agent/data/backlog.sock'
else:
    family, address = socket.AF_INET, ('127.0.0.1', 9200)
listener = socket.socket(family, socket.SOCK_STREAM)
listener.bind(address)
listener.listen()


def speak():
    client = socket.socket(family, socket.SOCK_STREAM)
    client.connect(address)
    client.sendall(b'hello')
    return client


def check():
    global checks, client
    checks += 1
    server = listener.accept()[0]
    expect('what came', server.recv(100), b'hello')
    server.sendall(b'welcome')
    expect('the answer', client.recv(100), b'welcome')
    server.close()
    client.close()
    client = speak()
    return {'checks': checks}


client = speak()
run(check)
