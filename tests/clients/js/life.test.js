// The JavaScript SDK v3 as its users write it: commands, waiters, paginators, errors by name.
// Endpoint, region and key come from the environment, as they would at a user's.

import assert from "node:assert/strict";
import { after, test } from "node:test";

import {
  AuthorizeSecurityGroupIngressCommand,
  CreateKeyPairCommand,
  CreateSecurityGroupCommand,
  CreateTagsCommand,
  DeleteKeyPairCommand,
  DeleteSecurityGroupCommand,
  DeleteTagsCommand,
  DescribeInstanceAttributeCommand,
  DescribeInstancesCommand,
  DescribeSecurityGroupsCommand,
  DescribeTagsCommand,
  EC2Client,
  GetConsoleOutputCommand,
  ModifyInstanceAttributeCommand,
  RebootInstancesCommand,
  RunInstancesCommand,
  StartInstancesCommand,
  StopInstancesCommand,
  TerminateInstancesCommand,
  paginateDescribeInstanceTypes,
  paginateDescribeInstances,
  waitUntilInstanceRunning,
  waitUntilInstanceStatusOk,
  waitUntilInstanceStopped,
  waitUntilInstanceTerminated,
  waitUntilKeyPairExists,
  waitUntilSecurityGroupExists,
} from "@aws-sdk/client-ec2";

const ImageId = process.env.ANYNODE_IMAGE;
const ec2 = new EC2Client({});
const soon = { client: ec2, minDelay: 1, maxDelay: 2, maxWaitTime: 60 };

after(() => ec2.destroy());

async function described(InstanceIds) {
  const { Reservations } = await ec2.send(new DescribeInstancesCommand({ InstanceIds }));
  return Reservations.flatMap((reservation) => reservation.Instances);
}

function refusal(name, status) {
  return (error) => {
    assert.equal(error.name, name);
    assert.equal(error.$metadata.httpStatusCode, status);
    assert.ok(error.$metadata.requestId);
    assert.ok(error.message);
    return true;
  };
}

test("a whole life", async () => {
  const KeyName = "javascript";
  const key = await ec2.send(new CreateKeyPairCommand({ KeyName, KeyType: "ed25519" }));
  assert.match(key.KeyMaterial, /^-----BEGIN/);
  await waitUntilKeyPairExists(soon, { KeyNames: [KeyName] });
  const { GroupId } = await ec2.send(
    new CreateSecurityGroupCommand({ GroupName: "javascript", Description: "A whole life" }),
  );
  await waitUntilSecurityGroupExists(soon, { GroupIds: [GroupId] });
  const rule = {
    IpProtocol: "tcp",
    FromPort: 22,
    ToPort: 22,
    IpRanges: [{ CidrIp: "192.0.2.0/24", Description: "the office" }],
  };
  const opened = await ec2.send(
    new AuthorizeSecurityGroupIngressCommand({ GroupId, IpPermissions: [rule] }),
  );
  assert.equal(opened.Return, true);
  assert.equal(opened.SecurityGroupRules[0].FromPort, 22);
  const { SecurityGroups } = await ec2.send(
    new DescribeSecurityGroupsCommand({ GroupIds: [GroupId] }),
  );
  assert.deepEqual(SecurityGroups[0].IpPermissions[0].IpRanges, rule.IpRanges);

  const { Instances } = await ec2.send(
    new RunInstancesCommand({
      ImageId,
      InstanceType: "t3.micro",
      MinCount: 2,
      MaxCount: 2,
      KeyName,
      SecurityGroupIds: [GroupId],
      UserData: Buffer.from("#!/bin/sh\necho hello\n").toString("base64"),
      TagSpecifications: [
        { ResourceType: "instance", Tags: [{ Key: "Name", Value: "javascript" }] },
      ],
    }),
  );
  const InstanceIds = Instances.map((instance) => instance.InstanceId);
  const [InstanceId] = InstanceIds;
  await waitUntilInstanceRunning(soon, { InstanceIds });
  await waitUntilInstanceStatusOk(soon, { InstanceIds });
  for (const instance of await described(InstanceIds)) {
    assert.equal(instance.State.Name, "running");
    assert.equal(instance.KeyName, KeyName);
    assert.ok(instance.LaunchTime instanceof Date);
    assert.deepEqual(instance.Tags, [{ Key: "Name", Value: "javascript" }]);
    assert.equal(instance.SecurityGroups[0].GroupId, GroupId);
  }

  const console = await ec2.send(new GetConsoleOutputCommand({ InstanceId }));
  assert.equal(console.InstanceId, InstanceId);
  const Tags = [{ Key: "stage", Value: "live" }];
  await ec2.send(new CreateTagsCommand({ Resources: [InstanceId], Tags }));
  const asked = { Filters: [{ Name: "resource-id", Values: [InstanceId] }] };
  const listed = await ec2.send(new DescribeTagsCommand(asked));
  assert.deepEqual(listed.Tags.map((tag) => tag.Key).sort(), ["Name", "stage"]);
  await ec2.send(new DeleteTagsCommand({ Resources: [InstanceId], Tags: [{ Key: "stage" }] }));

  await ec2.send(new RebootInstancesCommand({ InstanceIds: [InstanceId] }));
  await ec2.send(new StopInstancesCommand({ InstanceIds: [InstanceId] }));
  await waitUntilInstanceStopped(soon, { InstanceIds: [InstanceId] });
  await ec2.send(
    new ModifyInstanceAttributeCommand({ InstanceId, InstanceType: { Value: "t3.small" } }),
  );
  await ec2.send(
    new ModifyInstanceAttributeCommand({ InstanceId, DisableApiTermination: { Value: true } }),
  );
  await ec2.send(new StartInstancesCommand({ InstanceIds: [InstanceId] }));
  await waitUntilInstanceRunning(soon, { InstanceIds: [InstanceId] });
  assert.equal((await described([InstanceId]))[0].InstanceType, "t3.small");
  const isProtected = await ec2.send(
    new DescribeInstanceAttributeCommand({ InstanceId, Attribute: "disableApiTermination" }),
  );
  assert.deepEqual(isProtected.DisableApiTermination, { Value: true });

  const end = new TerminateInstancesCommand({ InstanceIds });
  await assert.rejects(ec2.send(end), refusal("OperationNotPermitted", 400));
  await ec2.send(
    new ModifyInstanceAttributeCommand({ InstanceId, DisableApiTermination: { Value: false } }),
  );
  const { TerminatingInstances } = await ec2.send(end);
  assert.deepEqual(
    TerminatingInstances.map((change) => change.CurrentState),
    InstanceIds.map(() => ({ Code: 32, Name: "shutting-down" })),
  );
  await waitUntilInstanceTerminated(soon, { InstanceIds });
  const removed = await ec2.send(new DeleteSecurityGroupCommand({ GroupId }));
  assert.equal(removed.Return, true);
  await ec2.send(new DeleteKeyPairCommand({ KeyName }));
  await assert.rejects(
    ec2.send(new DescribeSecurityGroupsCommand({ GroupIds: [GroupId] })),
    refusal("InvalidGroup.NotFound", 400),
  );
});

test("pages", async () => {
  const count = 12;
  const launch = { ImageId, InstanceType: "t2.nano", MinCount: count, MaxCount: count };
  const { Instances } = await ec2.send(new RunInstancesCommand(launch));
  const ids = Instances.map((instance) => instance.InstanceId).sort();
  const Filters = [{ Name: "instance-id", Values: ids }];
  const pages = [];
  for await (const page of paginateDescribeInstances({ client: ec2, pageSize: 5 }, { Filters })) {
    pages.push(page.Reservations.flatMap((each) => each.Instances).map((each) => each.InstanceId));
  }
  assert.deepEqual(pages.map((page) => page.length), [5, 5, 2]);
  assert.deepEqual(pages.flat().sort(), ids);
  const types = [];
  for await (const page of paginateDescribeInstanceTypes({ client: ec2 }, {})) {
    types.push(...page.InstanceTypes.map((type) => type.InstanceType));
  }
  assert.ok(types.includes("t2.nano"));
  await ec2.send(new TerminateInstancesCommand({ InstanceIds: ids }));
});

test("a dry run, and an instance that does not exist", async () => {
  const dry = { ImageId, InstanceType: "t2.nano", MinCount: 1, MaxCount: 1, DryRun: true };
  await assert.rejects(ec2.send(new RunInstancesCommand(dry)), refusal("DryRunOperation", 412));
  await assert.rejects(described(["i-00000000000000000"]), refusal("InvalidInstanceID.NotFound", 400));
});
