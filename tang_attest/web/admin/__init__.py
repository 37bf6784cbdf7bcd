"""The admin API: operations, wire models, bearer tokens, and the OpenAPI document."""
