# logs -f: thirty lines that the pod writes meanwhile, none missing, none twice
kubectl logs -f box --tail=1 | python3 -c '
import itertools, sys
numbers = [int(line.split()[1]) for line in itertools.islice(sys.stdin, 30)]
print(len(numbers), numbers == list(range(numbers[0], numbers[0] + 30)))'
