"""The wire contract as documents, made from the routes and payload types: schemas, AsyncAPI, broker rules, text."""
