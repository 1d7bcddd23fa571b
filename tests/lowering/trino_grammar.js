// Reads a JSON array of statements and prints what Trino's grammar says of each: an array of lists of errors.
const { TrinoSQL } = require("dt-sql-parser");
const statements = JSON.parse(require("fs").readFileSync(0, "utf8"));
const parser = new TrinoSQL();
console.log(JSON.stringify(statements.map((sql) => parser.validate(sql).map((error) => error.message))));
