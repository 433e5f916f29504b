/** What scripts/build makes of the files here; imported with `{ type: 'file' }` these are paths. */
declare module '*/console/terminal.js' {
  const path: string
  export default path
}

declare module '*.css' {
  const path: string
  export default path
}
