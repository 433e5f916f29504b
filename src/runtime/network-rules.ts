import type { Connection } from './netlink.ts'

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
}

/**
 * The firewall of all computers, for `nft -f`. `add` before `delete` makes the deletion of a table that may not exist
 * succeed; all of it is one transaction.
 */
export function networkRules({ table, gateway, subnet, ports, allow, locked }: Rules): string {
  return `
add table inet ${table}
delete table inet ${table}
table inet ${table} {
  set locked { type ipv4_addr . inet_service . ipv4_addr . inet_service; ${elements(locked.map(lockElement))} }
  set allowed { type ipv4_addr; flags interval; auto-merge; ${elements(allow)} }
  set private { type ipv4_addr; flags interval; ${elements(PRIVATE_NETWORKS)} }
  set permitted { type ipv4_addr . ipv4_addr . inet_service; }

  chain locked_in { type filter hook prerouting priority raw; policy accept; ip saddr . tcp sport . ip daddr . tcp dport @locked drop; }
  chain locked_out { type filter hook output priority raw; policy accept; ip daddr . tcp dport . ip saddr . tcp sport @locked drop; }

  chain refuse {
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }

  chain from_computer {
    ct state established,related accept
    ip daddr . tcp dport { ${ports.map((port) => `${gateway} . ${port}`).join(', ')} } accept
    ip daddr ${gateway} udp dport 53 accept
    ip daddr ${gateway} tcp dport 53 accept
    ip daddr ${gateway} icmp type echo-request accept
    ip daddr @allowed accept
    ip saddr . ip daddr . tcp dport @permitted accept
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
    ip saddr != ${subnet} return
    ct state established,related accept
    ip daddr @allowed accept
    ip saddr . ip daddr . tcp dport @permitted accept
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
