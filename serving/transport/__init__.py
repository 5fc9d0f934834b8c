"""Thin transports over the data plane: HTTP (V1, V2 JSON) and gRPC, inside KServe's server."""
