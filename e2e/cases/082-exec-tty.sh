# exec -t: a terminal, its size, and what it becomes when the window changes
# also: spdy
python3 - <<'PY'
import fcntl, os, pty, select, struct, sys, termios, time, signal
def resize(fd, rows, cols): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
pid, fd = pty.fork()
if pid == 0:
    os.execvp("kubectl", ["kubectl", "exec", "-it", "box", "--", "sh"])
seen = b""
def read_until(text, seconds=20):
    global seen
    end = time.monotonic() + seconds
    while text not in seen:
        left = end - time.monotonic()
        if left <= 0: print("not seen:", text, "in", seen); sys.exit(1)
        if select.select([fd], [], [], left)[0]:
            try: seen += os.read(fd, 65536)
            except OSError: break
def ask(command, answer):
    global seen
    os.write(fd, command); read_until(answer); seen = b""
resize(fd, 31, 97); os.kill(pid, signal.SIGWINCH)
ask(b"tty; echo is-$((40+2))\n", b"is-42")
for rows, cols in ((33, 101), (24, 80)):
    resize(fd, rows, cols); os.kill(pid, signal.SIGWINCH)
    for attempt in range(50):
        os.write(b"" and fd or fd, b"stty size | tr ' ' x; echo asked-$((%d))\n" % attempt)
        read_until(b"asked-%d\r" % attempt)
        if b"%dx%d" % (rows, cols) in seen: print("size", rows, cols); break
        seen = b""; time.sleep(0.1)
    else: print("the size did not change to", rows, cols)
    seen = b""
os.write(fd, b"exit 5\n")
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        if not os.read(fd, 65536): break
    except OSError: break
print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
PY
