# port-forward: 200 connections at once, a half-closed one, one to a port where nobody listens
# also: spdy
kubectl exec box -- sh -c 'mkdir -p /var/www && seq 1 20000 > /var/www/numbers && httpd -p 8080 -h /var/www; (nc -ll -p 9000 -e sh -c "wc -c > /tmp/counted; cat /tmp/counted" >/dev/null 2>&1 &)'
python3 - <<'PY'
import hashlib, socket, subprocess, threading, sys
forward = subprocess.Popen(["kubectl", "port-forward", "pod/box", ":8080", ":9000", ":9999"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
ports = {}
while len(ports) < 3:
    words = forward.stdout.readline().split()
    if "127.0.0.1" in words[2]: ports[int(words[-1])] = int(words[2].rsplit(":", 1)[1])
results, lock, again = {}, threading.Lock(), []
def once():
    s = socket.create_connection(("127.0.0.1", ports[8080]), 20)
    s.sendall(b"GET /numbers HTTP/1.0\r\n\r\n")
    got = b""
    while chunk := s.recv(65536): got += chunk
    return hashlib.sha256(got.split(b"\r\n\r\n", 1)[1]).hexdigest()[:16]
def fetch():
    # On a busy machine the kubelet loses one of 200 now and then, directly too: such a one is tried again, and counted.
    for attempt in range(4):
        try: result = once(); break
        except (OSError, IndexError) as error: result = type(error).__name__
        with lock: again.append(result)
    with lock: results[result] = results.get(result, 0) + 1
threads = [threading.Thread(target=fetch) for _ in range(200)]
for t in threads: t.start()
for t in threads: t.join()
print(results)
print(f"tried again: {len(again)} {again}", file=sys.stderr)
print("tried again:", "at most 10" if len(again) <= 10 else f"{len(again)}, which is too often")
s = socket.create_connection(("127.0.0.1", ports[9000]), 60)
s.sendall(b"x" * 300_000); s.shutdown(socket.SHUT_WR)
answer = b""
while chunk := s.recv(4096): answer += chunk
print("answered after half-close:", answer.decode().strip())
forward.terminate(); print("ended", forward.wait(20) != 0)
PY
kubectl exec box -- cat /tmp/counted
kubectl exec box -- sh -c 'killall httpd nc 2>/dev/null; true'
