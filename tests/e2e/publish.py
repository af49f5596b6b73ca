"""What a cloud has of an image: python3 publish.py IMAGE-ID SNAPSHOT-ID SIZE, by the cloud's own client."""
import base64
import hashlib
import json
import sys

import boto3

image, snapshot, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
ec2, ebs = boto3.client("ec2"), boto3.client("ebs")
block_size = 512 * 1024


def tags(of):
    return {tag["Key"]: tag["Value"] for tag in of.get("Tags", [])}


listed = ebs.list_snapshot_blocks(SnapshotId=snapshot)
disk, sums = bytearray(-(-size // block_size) * block_size), b""
good = len(disk) <= listed["VolumeSize"] << 30
for block in sorted(listed["Blocks"], key=lambda block: block["BlockIndex"]):
    index = block["BlockIndex"]
    got = ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=block["BlockToken"])
    data = got["BlockData"].read()
    digest = hashlib.sha256(data).digest()
    good = good and len(data) == block_size == got["DataLength"] and any(data)
    good = good and (index + 1) * block_size <= len(disk)
    good = good and base64.b64decode(got["Checksum"]) == digest and got["ChecksumAlgorithm"] == "SHA256"
    disk[index * block_size:(index + 1) * block_size] = data
    sums += digest
json.dump({
    "sha256": hashlib.sha256(disk[:size]).hexdigest(),
    "rest-is-zero": not any(disk[size:]),
    "blocks-are-good": good,
    "blocks": len(listed["Blocks"]),
    "aggregate": base64.b64encode(hashlib.sha256(sums).digest()).decode(),
    "image": tags(ec2.describe_images(ImageIds=[image])["Images"][0]),
    "snapshot": tags(ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]),
}, sys.stdout)
