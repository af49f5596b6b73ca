# What a launcher does with objects, by the cloud's own client.
import json
import sys

import boto3
from botocore.config import Config

mode, arguments = sys.argv[1], sys.argv[2:]
real = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
if mode == "sign":
    # URLs for a host that only the machine has.
    place = {"LocationConstraint": real.meta.region_name}
    real.create_bucket(Bucket="jobs", CreateBucketConfiguration=place)
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    client = boto3.client("s3", endpoint_url=arguments[0], config=config)
    verbs = {"get": "get_object", "put": "put_object"}
    names = [name.split(":") for name in arguments[1:]]
    print(json.dumps({
        name: client.generate_presigned_url(verbs[verb], {"Bucket": "jobs", "Key": name}, 3600)
        for verb, name in names
    }))
elif mode == "put":
    for name, path in zip(arguments[::2], arguments[1::2]):
        with open(path, "rb") as file:
            real.put_object(Bucket="jobs", Key=name, Body=file)
    print("{}")
else:
    found = real.list_objects_v2(Bucket="jobs").get("Contents", [])
    print(json.dumps({
        entry["Key"]: real.get_object(Bucket="jobs", Key=entry["Key"])["Body"].read().hex()
        for entry in found
    }))
