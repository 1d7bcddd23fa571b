// Prints, for a JSON file of statements by name, what Trino's grammar has against each: a list of messages by name.
import fs from 'node:fs';
import { register } from 'node:module';

// The package names its own files without their endings.
const resolve = `
export async function resolve(name, context, next) {
  if (!name.startsWith('.')) return next(name, context);
  for (const end of ['', '.js']) {
    try { return await next(name + end, context); } catch { }
  }
  return next(name + '/index.js', context);
}`;
register(`data:text/javascript,${encodeURIComponent(resolve)}`);
const { TrinoSQL } = await import('dt-sql-parser');
const grammar = new TrinoSQL();
const statements = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const found = Object.entries(statements).map(([name, sql]) => [
  name,
  grammar.validate(`${sql};`).map((error) => `${error.message} at: ${sql.slice(Math.max(0, error.startColumn - 40), error.startColumn + 40)}`),
]);
console.log(JSON.stringify(Object.fromEntries(found)));
