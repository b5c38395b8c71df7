# exec: 100 MB into stdin and back
python3 -c '
import random, sys
random.seed(7)
block = random.randbytes(1 << 20)
for n in range(100): sys.stdout.buffer.write(n.to_bytes(8, "big") + block[8:])
' > "$SCRATCH/in"
sha256sum < "$SCRATCH/in"
kubectl exec -i box -- sha256sum < "$SCRATCH/in"
kubectl exec -i box -- cat < "$SCRATCH/in" | sha256sum
