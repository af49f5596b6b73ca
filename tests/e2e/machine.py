"""Waits for a machine of AppPot's, and prints what the cloud knows of it."""
import base64
import json
import sys
import time

import boto3

ec2 = boto3.client("ec2")
ours = [{"Name": "tag-key", "Values": ["apppot:job"]}]
end = time.time() + 60
while True:
    found = ec2.describe_instances(Filters=ours)["Reservations"]
    machines = [machine for one in found for machine in one["Instances"]]
    machines = [one for one in machines if one["State"]["Name"] != "terminated"]
    if machines:
        break
    assert time.time() < end, "no machine"
    time.sleep(0.1)
machine = machines[0]
id = machine["InstanceId"]


def attribute(name, key):
    return ec2.describe_instance_attribute(InstanceId=id, Attribute=name)[key]["Value"]


json.dump(
    {
        "id": id,
        "type": machine["InstanceType"],
        "tags": {tag["Key"]: tag["Value"] for tag in machine["Tags"]},
        "user-data": base64.b64decode(attribute("userData", "UserData")).decode(),
        "at-power-off": attribute("instanceInitiatedShutdownBehavior", "InstanceInitiatedShutdownBehavior"),
    },
    sys.stdout,
)
