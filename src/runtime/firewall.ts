import { z } from 'zod'
import { run } from './command.ts'

const CHAIN = z.object({
  family: z.string(),
  table: z.string(),
  name: z.string(),
  hook: z.string().optional(),
  policy: z.string().optional(),
})
const LISTING = z.object({ nftables: z.array(z.object({ chain: CHAIN.optional() })) })

/** What becomes of packets of a computer that are dropped at this hook. */
const LOST = new Map([
  ['input', 'computers do not reach their LLM proxy and name server'],
  ['forward', 'computers do not reach the internet'],
])

/**
 * Chains of the server's own firewall that drop what comes from computers, one sentence each. They are not orb's to change, and
 * no rule of orb can save a packet from them. A table that names the subnet of the computers is taken to let them pass.
 * Rules made with iptables-legacy are not seen. @throws Error when nft does not answer
 */
export async function firewallProblems(subnet: string): Promise<string[]> {
  const { nftables } = LISTING.parse(JSON.parse(await run(['nft', '-j', 'list', 'chains'])))
  const problems = await Promise.all(
    nftables.map(async ({ chain }) => {
      const lost = LOST.get(chain?.hook ?? '')
      if (!chain || lost === undefined || chain.policy !== 'drop' || !/^(ip|inet)$/.test(chain.family)) return null
      const table = await run(['nft', 'list', 'table', chain.family, chain.table])
      return table.includes(` ${subnet} `) ? null : `${chain.table} ${chain.name} drops by its policy: ${lost}`
    }),
  )
  return problems.filter((problem) => problem !== null)
}
