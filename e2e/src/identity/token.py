"""A token of the client `robot` from a provider, as credential programs print it.

token.py URL CA-FILE SECRET-FILE raw|exec|az RESOURCE
"""
import base64, json, ssl, sys, time, urllib.parse, urllib.request

url, ca, secret, shape, resource = sys.argv[1:]
form = urllib.parse.urlencode({"grant_type": "client_credentials", "resource": resource}).encode()
basic = base64.b64encode(("robot:" + open(secret).read().strip()).encode()).decode()
request = urllib.request.Request(url + "/token", form, {"Authorization": "Basic " + basic})
with urllib.request.urlopen(request, timeout=20, context=ssl.create_default_context(cafile=ca)) as answer:
    token = json.load(answer)["access_token"]
ends = int(time.time()) + 3600
if shape == "exec":
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    status = {"token": token, "expirationTimestamp": stamp}
    print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}))
elif shape == "az":
    print(json.dumps({"accessToken": token, "expires_on": ends, "expiresOn": "later", "tokenType": "Bearer"}))
else:
    print(token)
