"""The model server: lifecycle of versions, data plane, transports, and the composition root."""
