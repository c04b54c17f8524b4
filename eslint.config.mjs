// Rules for the viewer's scripts. `make lint` installs ESLint into .cache/eslint
// where npm is; the page itself needs no package.
//
// The scripts are joined into one page, so that what one declares at its top
// level the others may use.

import {readdirSync, readFileSync} from 'node:fs';
import {createRequire} from 'node:module';

const FOLDER = new URL('./sculpt4d_jax/io/viewer/', import.meta.url);
const DECLARED = /^(?:async )?(?:class|function|const|let) (\w+)/gm;

const load = createRequire(new URL('./.cache/eslint/', import.meta.url));
const js = load('@eslint/js');
const globals = load('globals');

const shared = {};
for (const name of readdirSync(FOLDER).filter((n) => n.endsWith('.js'))) {
  const text = readFileSync(new URL(name, FOLDER), 'utf8');
  for (const [, declared] of text.matchAll(DECLARED)) {
    shared[declared] = 'readonly';
  }
}

export default [
  {ignores: ['.cache/', '.venv/', 'build/', 'site/']},
  js.configs.recommended,
  {files: ['*.mjs'], languageOptions: {globals: globals.node}},
  {
    files: ['sculpt4d_jax/io/viewer/*.js'],
    languageOptions: {
      ecmaVersion: 2022,
      sourceType: 'script',
      globals: {...globals.browser, ...shared},
    },
    rules: {
      'no-redeclare': ['error', {builtinGlobals: false}],
      'no-unused-vars': ['error', {vars: 'local'}],
      'prefer-const': 'error',
      'no-var': 'error',
      'eqeqeq': 'error',
      'no-implicit-globals': 'off',
      'max-len': ['error', {code: 80, ignoreUrls: true}],
    },
  },
];
