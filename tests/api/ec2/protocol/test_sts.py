"""The STS replies, as botocore reads them."""

from __future__ import annotations

import botocore.loaders
import botocore.model
import botocore.parsers

from appliance.api.ec2.protocol import sts


def test_the_identity_is_read_by_botocore() -> None:
    description = botocore.loaders.Loader().load_service_model("sts", "service-2")
    operation = botocore.model.ServiceModel(description, "sts").operation_model("GetCallerIdentity")
    raw = sts.serialize_caller_identity(
        account="000000000001", user_id="a&b", arn="arn:aws:iam::1:user/a", request_id="req-1"
    )
    parsed = botocore.parsers.create_parser("query").parse(
        {"status_code": 200, "headers": {}, "body": raw}, operation.output_shape
    )
    assert parsed.pop("ResponseMetadata")["RequestId"] == "req-1"
    assert parsed == {
        "Account": "000000000001",
        "UserId": "a&b",
        "Arn": "arn:aws:iam::1:user/a",
    }


def test_errors_say_whose_fault_it_is() -> None:
    for status, blame in ((403, "Sender"), (503, "Receiver")):
        raw = sts.serialize_error("Code", "<text>", request_id="req-2", http_status=status)
        parsed = botocore.parsers.create_parser("query").parse(
            {"status_code": status, "headers": {}, "body": raw}, None
        )
        assert parsed["Error"] == {"Type": blame, "Code": "Code", "Message": "<text>"}
        assert parsed["ResponseMetadata"]["RequestId"] == "req-2"
