"""What a large message of protobuf would make its parser build is counted before, however the message is written."""

from collections.abc import Callable

import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from serving.errors import BodyTooLarge
from serving.transport.wire import MOST_FIELDS, MOST_TYPED_BYTES, check_message

pytestmark = pytest.mark.audit("33")
GROUP, ITS_END = b"\x7b", b"\x7c"  # of a field 15, which no message has
MANY = MOST_FIELDS + 1


def typed() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    message.inputs.add().contents.int_contents.extend([1] * (MOST_TYPED_BYTES + 1))
    return message


def of_tensors() -> pb.ModelInferRequest:
    return pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor()] * MANY)


def with_parameters() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    parameters = message.outputs.add(name="predictions").parameters
    for number in range(MANY):
        parameters[str(number)].bool_param = True
    return message


@pytest.mark.parametrize("made", [typed, of_tensors, with_parameters])
@pytest.mark.parametrize("before", [b"", GROUP + ITS_END, GROUP + b"\x08\x01" + GROUP + ITS_END + ITS_END])
def test_too_many_values_are_refused_unparsed(made: Callable[[], pb.ModelInferRequest], before: bytes) -> None:
    """Whether tensors, typed values or the parameters of an output, and behind what the parser drops, too."""
    data = before + made().SerializeToString()
    assert len(pb.ModelInferRequest.FromString(data).inputs) == len(made().inputs)  # for the parser it is well-formed
    with pytest.raises(BodyTooLarge):
        check_message(data)


@pytest.mark.parametrize("damage", [b"\x7e", b"\x00", b"\xff" * 11, b"\x2a\xff\xff\xff\xff\x0f", GROUP])
def test_what_is_malformed_is_left_to_the_parser(damage: bytes) -> None:
    """Nothing is raised but what is too much."""
    check_message(damage + pb.ModelInferRequest(model_name="m").SerializeToString())
