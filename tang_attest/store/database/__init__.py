"""The database: engines, schema, tables, column types, and the authenticity of rows."""
