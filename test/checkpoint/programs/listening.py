"""Listening sockets and connections inside the computer: TCP over IPv4 and IPv6, UDP, each with data under way."""

import socket

from harness import expect, later, run

PORT = 9100
PLACES = [
    (socket.AF_INET, '0.0.0.0', '127.0.0.1', PORT),
    (socket.AF_INET, '127.0.0.1', '127.0.0.1', PORT + 1),
    (socket.AF_INET6, '::1', '::1', PORT + 2),
    (socket.AF_INET6, '::', '127.0.0.1', PORT + 3),
]
checks = 0


def echo(listener):
    def serve(connection):
        while data := connection.recv(100):
            connection.sendall(data)

    while True:
        connection = listener.accept()[0]
        later(lambda connection=connection: serve(connection))


def listening(family, address, port):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()
    return listener


def said(number):
    return b'number %8d' % number


for family, address, _, port in PLACES:
    later(lambda listener=listening(family, address, port): echo(listener))
clients = [socket.create_connection((reached, port)) for _, _, reached, port in PLACES]
for client in clients:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
quiet = listening(socket.AF_INET, '127.0.0.1', PORT + 4)
quiet_client = socket.create_connection(('127.0.0.1', PORT + 4))
quiet_server = quiet.accept()[0]
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(('127.0.0.1', PORT))
datagram_client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagram_client.connect(('127.0.0.1', PORT))


def check():
    global checks
    expect('bytes that were under way', [quiet_client.recv(15), quiet_server.recv(15)], [said(checks)] * 2)
    checks += 1
    for client, (_, _, reached, port) in zip(clients, PLACES):
        client.sendall(said(checks))
        expect(f'echo of port {port}', client.recv(100), said(checks))
        with socket.create_connection((reached, port)) as new:
            new.sendall(said(checks))
            expect(f'echo to a new client of port {port}', new.recv(100), said(checks))
    datagram_client.send(said(checks))
    expect('a datagram', datagrams.recv(100), said(checks))
    quiet_client.sendall(said(checks))
    quiet_server.sendall(said(checks))
    return {'checks': checks}


quiet_client.sendall(said(0))
quiet_server.sendall(said(0))
run(check)
