"""Prints how many of the requests in a file were signed in which way, and those that were signed wrongly."""
import json
import sys

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.session import Session

credentials = Session().get_credentials().get_frozen_credentials()
checked = {"by header": 0, "by URL": 0, "wrong": []}
for one in json.load(open(sys.argv[1])):
    line, *lines = one["head"].split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    path, _, query = target.partition("?")
    words = dict(word.partition("=")[::2] for word in query.split("&"))
    if "X-Amz-Signature" in words:
        way, kind = "by URL", S3SigV4QueryAuth
        scope = words["X-Amz-Credential"].replace("%2F", "/")
        signed, date = words["X-Amz-SignedHeaders"].replace("%3B", ";"), words["X-Amz-Date"]
        signature = words["X-Amz-Signature"]
        rest = [word for word in query.split("&") if not word.startswith("X-Amz-Signature=")]
        target = path + "?" + "&".join(rest)
    else:
        fields = headers["authorization"].removeprefix("AWS4-HMAC-SHA256 ").split(",")
        fields = dict(field.strip().split("=", 1) for field in fields)
        scope, signed, signature = fields["Credential"], fields["SignedHeaders"], fields["Signature"]
        way, date = "by header", headers["x-amz-date"]
        kind = S3SigV4Auth if "/s3/" in scope else SigV4Auth
    key, _, region, service, _ = scope.split("/")
    assert key == credentials.access_key
    request = AWSRequest(
        method,
        "http://" + headers["host"] + target,
        headers={name: headers[name] for name in signed.split(";")},
        data=bytes.fromhex(one["body"]),
    )
    request.context["timestamp"] = date
    signer = kind(credentials, service, region)
    canonical = signer.canonical_request(request)
    if signer.signature(signer.string_to_sign(request, canonical), request) == signature:
        checked[way] += 1
    else:
        checked["wrong"].append(method + " " + target)
json.dump(checked, sys.stdout)
