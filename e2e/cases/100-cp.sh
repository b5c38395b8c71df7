# cp: 100 MB both ways, and a tree of 2,000 files
python3 -c '
import random, sys
random.seed(11)
block = random.randbytes(1 << 20)
for n in range(100): sys.stdout.buffer.write(n.to_bytes(8, "big") + block[8:])
' > "$SCRATCH/hundred"
sha256sum < "$SCRATCH/hundred"
kubectl cp "$SCRATCH/hundred" box:/tmp/hundred
kubectl exec box -- sha256sum /tmp/hundred
kubectl cp box:/tmp/hundred "$SCRATCH/back" >/dev/null
sha256sum < "$SCRATCH/back"
mkdir "$SCRATCH/tree"
python3 - "$SCRATCH/tree" <<'PY'
import os, sys
for n in range(2000):
    folder = os.path.join(sys.argv[1], f"d{n % 20}")
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, f"f{n}"), "w").write(f"file {n}\n" * (n % 50 + 1))
PY
kubectl cp "$SCRATCH/tree" box:/tmp/tree
kubectl exec box -- sh -c 'cd /tmp/tree && find . -type f | wc -l && find . -type f | sort | xargs cat | sha256sum'
kubectl cp box:/tmp/tree "$SCRATCH/tree-back" >/dev/null
(cd "$SCRATCH/tree-back" && find . -type f | wc -l && find . -type f | LC_ALL=C sort | xargs cat | sha256sum)
kubectl cp box:/no/such/file "$SCRATCH/nothing" >/dev/null 2>&1; echo "exit $?"
kubectl exec box -- rm -rf /tmp/hundred /tmp/tree
