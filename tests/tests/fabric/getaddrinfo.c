/* Prints the addresses of a name, one a line, each once. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int count, char **arguments)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
    char text[INET6_ADDRSTRLEN];

    if (count != 2)
        return 2;
    if (getaddrinfo(arguments[1], NULL, &hints, &found))
        return 1;
    for (each = found; each; each = each->ai_next)
        if (!getnameinfo(each->ai_addr, each->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST))
            puts(text);
    freeaddrinfo(found);
    return 0;
}
