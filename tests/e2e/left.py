"""Prints what is left in a cloud: states of machines, names of objects."""
import json
import sys

import boto3

found = boto3.client("ec2").describe_instances()["Reservations"]
machines = [machine["State"]["Name"] for one in found for machine in one["Instances"]]
objects = boto3.client("s3").list_objects_v2(Bucket=sys.argv[1]).get("Contents", [])
json.dump({"machines": machines, "objects": [one["Key"] for one in objects]}, sys.stdout)
