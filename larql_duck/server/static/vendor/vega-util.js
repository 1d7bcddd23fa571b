// What vega-interpreter imports from vega-util, of which vega's own build holds a copy.
export const { ascending, isString, DisallowedObjectProperties } = globalThis.vega;
