/** Imported with `{ type: 'file' }` these are paths: of the file in node_modules, or of its copy in the binary. */
declare module 'swagger-ui-dist/swagger-ui.css' {
  const path: string
  export default path
}

declare module 'swagger-ui-dist/swagger-ui-bundle.js' {
  const path: string
  export default path
}
