/** The page of a terminal. `nonce` is what its policy knows the styles by that the terminal emulator makes. */
export const page = (nonce: string): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark">
<title>Terminal</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/console/terminal.css">
<script type="module" nonce="${nonce}" src="/console/terminal.js"></script>
</head>
<body>
<header>
  <h1 id="title">Terminal</h1>
  <p id="status" role="status" data-state="idle"></p>
  <nav>
    <button id="search-open" type="button" title="Search (Ctrl+Shift+F)" hidden>Search</button>
    <button id="upload-open" type="button" title="Upload files to /root; or drop them here" hidden>Upload</button>
  </nav>
</header>
<main id="screen"></main>
<form id="search" role="search" hidden>
  <input id="search-text" type="text" placeholder="Search" aria-label="Search" autocomplete="off" spellcheck="false">
  <output id="search-count"></output>
  <button id="search-previous" type="button" title="Previous (Shift+Enter)" aria-label="Previous">&#8593;</button>
  <button id="search-next" type="submit" title="Next (Enter)" aria-label="Next">&#8595;</button>
  <button id="search-close" type="button" title="Close (Esc)" aria-label="Close">&#215;</button>
</form>
<div id="notice" role="alert" hidden>
  <p id="notice-text"></p>
  <button id="notice-action" type="button"></button>
</div>
<ul id="uploads" aria-live="polite"></ul>
<input id="upload-files" type="file" multiple hidden>
<div id="drop" hidden><p>Drop files to put them into <code>/root</code></p></div>
<div id="sign-in" hidden>
  <form id="key-form">
    <h2>Open a terminal</h2>
    <label for="key">API key</label>
    <input id="key" type="password" placeholder="orb_&#8230;" autocomplete="off" autocapitalize="off" spellcheck="false" required>
    <p id="key-problem" role="alert"></p>
    <button type="submit">Connect</button>
  </form>
</div>
<noscript><p>The terminal needs JavaScript.</p></noscript>
</body>
</html>
`
