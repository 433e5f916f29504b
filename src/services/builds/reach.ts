import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { type AllowEntry, allowed, isPrivate } from '../../addresses.ts'
import { type Cidr, cidrContains } from '../../cidr.ts'
import { CloneError } from './source.ts'

export interface ReachOptions {
  allowPrivate: readonly AllowEntry[]
  /** Private networks that computers may reach anyway. */
  sandboxAllow: readonly Cidr[]
  /** Lets the computer reach one private address and port; returns what takes it back. */
  permit(address: string, port: number): () => void
  /** Addresses of a name; may throw. */
  resolve?(host: string): Promise<string[]>
}

/** A way from the computer to the git host, until it is closed. */
export interface Reach {
  /** `host:port:address`: where the name leads, so that the computer asks no other name server. */
  pins: string[]
  close(): void
}

/**
 * Opens the git host for a computer where it lies in a private network that the operator allowed (ORB_ALLOW_PRIVATE, Orb
 * Cloud contract §1.1). Public hosts are open anyway. Throws CloneError for what may not or cannot be reached.
 */
export async function openGitHost(url: URL, options: ReachOptions): Promise<Reach> {
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const secure = url.protocol === 'https:'
  const port = url.port === '' ? (secure ? 443 : 80) : Number(url.port)
  const addresses = await addressesOf(host, options.resolve ?? resolveHost)
  const isAllowed = (address: string) => allowed(options.allowPrivate, host, port, address)
  if (!secure && !(addresses.length > 0 ? addresses : [host]).every(isAllowed)) {
    throw new CloneError(`plain http to ${url.host} is not allowed by the operator of this server (ORB_ALLOW_PRIVATE)`)
  }
  const closed = addresses.filter(
    (address) => isPrivate(address) && !options.sandboxAllow.some((cidr) => cidrContains(cidr, address)),
  )
  // A name with a public address is left to git, which tries what it can reach.
  if (closed.length === 0 || closed.length < addresses.length) return { pins: [], close: () => {} }
  const permitted = closed.filter((address) => isAllowed(address) && isIP(address) === 4)
  if (permitted.every(isLoopback)) {
    const why = closed.some(isLoopback)
      ? 'is a loopback address of the server, which a computer cannot reach'
      : 'lies in a private network that the operator of this server did not allow (ORB_ALLOW_PRIVATE)'
    throw new CloneError(`the git host ${url.host} ${why}`)
  }
  const open = permitted.filter((address) => !isLoopback(address))
  const undo = open.map((address) => options.permit(address, port))
  return {
    pins: isIP(host) === 0 ? [`${host}:${port}:${open.join(',')}`] : [],
    close: () => {
      for (const takeBack of undo) takeBack()
    },
  }
}

const isLoopback = (address: string): boolean => address.startsWith('127.') || address === '::1'

/** Empty when the name is not known: then git says so, in its own words. */
async function addressesOf(host: string, resolve: (host: string) => Promise<string[]>): Promise<string[]> {
  if (isIP(host) !== 0) return [host]
  return resolve(host).catch(() => [])
}

const resolveHost = async (host: string): Promise<string[]> =>
  (await lookup(host, { all: true })).map(({ address }) => address)
