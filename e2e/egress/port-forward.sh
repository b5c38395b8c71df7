# port-forward: ten requests at once
python3 - <<'PY'
import hashlib, socket, subprocess, threading
forward = subprocess.Popen(["kubectl", "port-forward", "pod/box", ":8080"], stdout=subprocess.PIPE, text=True)
port = int(forward.stdout.readline().split()[2].rsplit(":", 1)[1])
results = []
def fetch():
    s = socket.create_connection(("127.0.0.1", port), 20)
    s.sendall(b"GET /numbers HTTP/1.0\r\n\r\n")
    got = b""
    while chunk := s.recv(65536): got += chunk
    results.append(hashlib.sha256(got.split(b"\r\n\r\n", 1)[1]).hexdigest()[:16])
threads = [threading.Thread(target=fetch) for _ in range(10)]
for t in threads: t.start()
for t in threads: t.join()
print(len(results), set(results))
forward.terminate()
PY
