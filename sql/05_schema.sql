-- Where everything lives. A Python session makes the schema (or a catalog of that name) by itself.

CREATE SCHEMA lq;
