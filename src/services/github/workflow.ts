/** Names of what is put into a repository (Orb Cloud contract §17). */
export const WORKFLOW_PATH = '.github/workflows/orb-deploy.yml'
export const SECRET_NAME = 'ORB_API_KEY'

/**
 * The workflow that has a computer built and its agent started anew on each push (Orb Cloud contract §17). `branch` must be
 * a plain name: GitHub takes it as a pattern.
 */
export const workflow = (options: { publicUrl: string; computerId: string; branch: string }): string => `\
# Made by orb, which overwrites it when auto-deploy is set up again.
name: Deploy to orb

on:
  push:
    branches: [${JSON.stringify(options.branch)}]

permissions:
  contents: read

concurrency:
  group: orb-deploy
  cancel-in-progress: false

jobs:
  deploy:
    runs-on: ubuntu-latest
    steps:
      - name: Build and redeploy
        shell: bash
        env:
          ORB_API_KEY: \${{ secrets.${SECRET_NAME} }}
          ORB_BUILD_URL: ${JSON.stringify(`${options.publicUrl}/v1/computers/${options.computerId}/build`)}
          ORB_BUILD_BODY: '{"redeploy":true,"git_token":"\${{ github.token }}"}'
        run: |
          answer="$(mktemp)"
          curl --silent --show-error --keepalive-time 30 --output "$answer" --write-out 'HTTP %{http_code}\\n' \\
            --header "Authorization: Bearer $ORB_API_KEY" --header 'Content-Type: application/json' \\
            --data-binary "$ORB_BUILD_BODY" "$ORB_BUILD_URL"
          cat "$answer"
          grep -q '"success":true' "$answer"
`
