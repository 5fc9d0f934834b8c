"""A program: a transformer as KServe's documentation has it, on KServe's SDK alone.

python -m tests.transformer --model_name sums --predictor_host HOST:PORT --predictor_protocol v1|v2|grpc-v2 --http_port N
"""

import argparse
from typing import Any

from kserve import InferInput, InferRequest, Model, ModelServer, model_server


class Pairs(Model):
    """Takes what a person would send, `{"pairs": […]}`, and asks the predictor in its own protocol."""

    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        rows = payload["pairs"]
        if self.predictor_config.protocol == "v1":
            return {"instances": rows}
        flat = [value for row in rows for value in row]
        return InferRequest(self.name, [InferInput("rows", [len(rows), 2], "FP64", data=flat)])

    async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
        sums = result["predictions"] if isinstance(result, dict) else result.outputs[0].as_numpy().tolist()
        return {"sums": sums}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    args, _ = parser.parse_known_args()
    model = Pairs(args.model_name)
    model.load()
    ModelServer(http_port=args.http_port, grpc_port=args.grpc_port).start([model])
