import type { Connection } from './netlink.ts'
import { HOSTS, LEARNT, LIMITED, NETWORKS, type Outbound } from './outbound.ts'

/** Where no packet of a computer may go: RFC 6890's special ranges, of which 169.254/16 holds cloud metadata. */
const PRIVATE_NETWORKS = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '224.0.0.0-255.255.255.255',
]

/** Who may do what is told by the address: it must be one that answers would go to, whatever the host's own settings are. */
const OWN_ADDRESS_ONLY = 'iifname "orb-*" fib saddr . iif oif missing drop'

export interface Rules {
  /** Name of the nftables table. */
  table: string
  /** Address that all computers know as their gateway. */
  gateway: string
  /** Of the computers, in CIDR notation. */
  subnet: string
  /** TCP ports of the gateway that computers may reach. */
  ports: number[]
  /** Private networks that computers may reach all the same. */
  allow: string[]
  /** Of sleeping agents: no packet of them passes. */
  locked: Connection[]
  /** Of computers with an outbound list. */
  outbound: ReturnType<Outbound['elements']>
}

/**
 * The firewall of all computers, for `nft -f`. An outbound list takes away from what a computer could reach without one,
 * and adds nothing: what it lets pass is still held against the private networks. `add` before `delete` makes the deletion of a table that may not exist
 * succeed; all of it is one transaction.
 */
export function networkRules({ table, gateway, subnet, ports, allow, locked, outbound }: Rules): string {
  return `
add table inet ${table}
delete table inet ${table}
table inet ${table} {
  set locked { type ipv4_addr . inet_service . ipv4_addr . inet_service; ${elements(locked.map(lockElement))} }
  set allowed { type ipv4_addr; flags interval; auto-merge; ${elements(allow)} }
  set private { type ipv4_addr; flags interval; ${elements(PRIVATE_NETWORKS)} }
  set permitted { type ipv4_addr . ipv4_addr . inet_service; }
  set ${LIMITED} { type ipv4_addr; ${elements(outbound[LIMITED])} }
  set ${HOSTS} { type ipv4_addr . ipv4_addr; ${elements(outbound[HOSTS])} }
  set ${NETWORKS} { type ipv4_addr . ipv4_addr; flags interval; ${elements(outbound[NETWORKS])} }
  set ${LEARNT} { type ipv4_addr . ipv4_addr; flags timeout; ${elements(outbound[LEARNT])} }

  chain locked_in { type filter hook prerouting priority raw; policy accept; ip saddr . tcp sport . ip daddr . tcp dport @locked drop; }
  chain locked_out { type filter hook output priority raw; policy accept; ip daddr . tcp dport . ip saddr . tcp sport @locked drop; }

  chain refuse {
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }

  chain refuse_unlisted {
    ip saddr . ip daddr @${LEARNT} return
    ip saddr . ip daddr @${HOSTS} return
    ip saddr . ip daddr @${NETWORKS} return
    goto refuse
  }

  chain from_computer {
    ct state established,related accept
    ${OWN_ADDRESS_ONLY}
    ip daddr . tcp dport { ${ports.map((port) => `${gateway} . ${port}`).join(', ')} } accept
    ip daddr ${gateway} udp dport 53 accept
    ip daddr ${gateway} tcp dport 53 accept
    ip daddr ${gateway} icmp type echo-request accept
    ip saddr . ip daddr . tcp dport @permitted accept
    ip saddr @${LIMITED} jump refuse_unlisted
    ip daddr @allowed accept
    goto refuse
  }

  chain input {
    type filter hook input priority filter - 5; policy accept;
    iifname "orb-*" meta nfproto ipv6 drop
    iifname "orb-*" ip saddr 0.0.0.0/8 drop
    iifname "orb-*" ip saddr ${subnet} jump from_computer
  }

  chain forward {
    type filter hook forward priority filter - 5; policy accept;
    ip daddr . tcp dport . ip saddr . tcp sport @locked drop
    iifname "orb-*" meta nfproto ipv6 drop
    ip daddr ${subnet} oifname "orb-*" ct state established,related accept
    ip daddr ${subnet} oifname "orb-*" goto refuse
    iifname != "orb-*" return
    ct state established,related accept
    ${OWN_ADDRESS_ONLY}
    ip saddr != ${subnet} return
    ip saddr . ip daddr . tcp dport @permitted accept
    ip saddr @${LIMITED} jump refuse_unlisted
    ip daddr @allowed accept
    ip daddr @private goto refuse
    ip daddr ${subnet} goto refuse
  }

  chain outward {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${subnet} oifname != "orb-*" ip daddr != ${subnet} masquerade
  }
}
`
}

const elements = (list: string[]): string => (list.length > 0 ? `elements = { ${list.join(', ')} }` : '')

const lockElement = ({ local, remote }: Connection): string =>
  `${local.address.join('.')} . ${local.port} . ${remote.address.join('.')} . ${remote.port}`
