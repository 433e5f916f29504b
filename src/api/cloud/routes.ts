import type { Settings } from '../../config.ts'
import type { Services } from '../../services/types.ts'
import type { Route } from '../route.ts'
import { agentRoutes } from './agents.ts'
import { authRoutes } from './auth.ts'
import { buildRoutes } from './builds.ts'
import { computerRoutes } from './computers.ts'
import { configRoutes } from './config.ts'
import { cronRoutes } from './cron.ts'
import { execRoutes } from './exec.ts'
import { fileRoutes } from './files.ts'
import { githubRoutes } from './github.ts'
import { keyRoutes } from './keys.ts'
import { logRoutes } from './logs.ts'
import { swarmRoutes } from './swarms.ts'
import { terminalRoutes } from './terminal.ts'
import { terminalPageRoutes } from './terminal-page.ts'
import { usageRoutes } from './usage.ts'
import { webhookRoutes } from './webhooks.ts'

/** Every route of the Orb Cloud contract. */
export const cloudRoutes = (services: Services, settings: Settings): Route[] => [
  ...authRoutes(services),
  ...keyRoutes(services),
  ...computerRoutes(services, settings),
  ...configRoutes(services),
  ...buildRoutes(services),
  ...agentRoutes(services),
  ...execRoutes(services, settings),
  ...logRoutes(services),
  ...fileRoutes(services),
  ...githubRoutes(services),
  ...usageRoutes(services),
  ...cronRoutes(services),
  ...webhookRoutes(services),
  ...terminalRoutes(services),
  ...terminalPageRoutes(),
  ...swarmRoutes(services, settings),
]
