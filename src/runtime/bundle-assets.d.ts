declare module '*.tar.zst' {
  const path: string
  export default path
}

declare module '*.manifest' {
  const text: string
  export default text
}
